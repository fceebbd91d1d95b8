# An application with ActiveRecord: does what each line of stdin says, a command and numbers, and tells on stderr what became of it.
require "active_record"
require "bigdecimal"
require "ksync"
ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))

class Product < ActiveRecord::Base
  include Ksync::Model
  def self.kafka_topic = ENV.fetch("TOPIC")
end

class Detailed < Product
  self.table_name = "products"
  def kafka_payload
    { id: id, at: Time.utc(2020, 9, 13, 12, 26, 40), on: Date.new(2020, 1, 2), cost: BigDecimal("1.5"), kind: :new, no: nil, name: "größe" }
  end
end

# Commits after these seconds; the client takes a delay message for old after one of them.
def commit_late(id, price, seconds)
  Ksync::Announcement.send(:remove_const, :FRESH_SECS)
  Ksync::Announcement.const_set(:FRESH_SECS, 1)
  Product.transaction do
    Product.find(id).update!(price: price)
    Product.connection.execute("SELECT pg_sleep(#{seconds})")
  end
end

def perform(command, ids)
  id, price = ids
  case command
  when "create" then Product.create!(id: id, price: price)
  when "update" then Product.find(id).update!(price: price)
  when "save" then Product.find(id).save!
  when "detailed" then Detailed.find(id).save!
  when "column" then Product.find(id).update_column(:price, price)
  when "touch" then Product.find(id).touch
  when "destroy" then Product.find(id).destroy!
  when "twice" then Product.transaction { 2.times { |price| Product.find(id).update!(price: price) } }
  when "both" then Product.transaction { ids.each { |each| Product.find(each).update!(price: 3) } }
  when "long" then commit_late(*ids)
  when "rollback"
    Product.transaction do
      Product.find(id).update!(price: price)
      raise ActiveRecord::Rollback
    end
  when "bulk" then Ksync.bulk(Product.where(id: ids).order(:id)) { |all| Product.where(id: all.map(&:id)).update_all(price: 7) }
  end
end

warn "ready"
$stdin.each_line(chomp: true) do |line|
  command, *numbers = line.split
  perform(command, numbers.map(&:to_i))
  warn "did #{line}"
rescue StandardError => error
  warn "failed #{line}: #{error.message}"
end
