"""An application with SQLAlchemy: changes products at random until it is ended."""

import os
import random
import sys
import time

import ksync
import sqlalchemy
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = __ksync_topic__ = "products"
    id = orm.mapped_column(sqlalchemy.Integer, primary_key=True, autoincrement=False)
    name = orm.mapped_column(sqlalchemy.Text)
    price = orm.mapped_column(sqlalchemy.Integer)


Session = orm.sessionmaker(sqlalchemy.create_engine(os.environ["DATABASE_URL"].replace("postgres:", "postgresql+psycopg:")))
ksync.announce(Session)


def change(id):
    with Session() as session:
        product = session.get(Product, id)
        action = random.randrange(10)
        if action == 0 and product:
            session.delete(product)
        else:
            product = product or Product(id=id)
            product.name, product.price = f"by python {random.randrange(1000)}", random.randrange(1000)
            session.add(product)
        if action == 1:
            session.flush()
            session.rollback()
        else:
            session.commit()


while True:
    try:
        change(random.randint(1, int(os.environ["ROWS"])))
        print("changed", flush=True)
    except (sqlalchemy.exc.SQLAlchemyError, orm.exc.StaleDataError, ksync.Error) as error:
        # Another application was faster, or ksync-stream is not there at the moment: nothing was changed.
        print(error, file=sys.stderr, flush=True)
        time.sleep(0.1)
